"""Every default of a method, with its unit and where the number comes from."""
