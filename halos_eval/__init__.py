"""Scheduled evaluation of aligned language models: AlpacaEval and lm-evaluation-harness on Airflow."""
