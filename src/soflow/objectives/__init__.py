"""Training methods: how times are drawn and what F is pulled towards."""
