"""The stages that pods run, one module each. Functions import heavy libraries themselves, so that loading is fast."""
