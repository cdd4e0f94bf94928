"""What people write: settings, suites, judges, policies, the cluster's file. Reads no network and no store."""
