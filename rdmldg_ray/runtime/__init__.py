"""Ray sessions, room on the cluster, progress and errors: what every room that runs something needs."""
