"""The demo: two small checkpoints, a local judge and a local Airflow. Nothing else imports this package."""
