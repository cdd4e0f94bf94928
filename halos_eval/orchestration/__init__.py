"""Tasks, operators and errors for Airflow. Only this package imports it."""
