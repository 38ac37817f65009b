"""Pure array functions: no state, no config."""
