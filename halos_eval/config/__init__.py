"""Configuration that users write: settings, suites, judges, policy and cluster files. Reads no network and no store."""
