"""Ray Tune over runs: settings compared by validation accuracy."""
