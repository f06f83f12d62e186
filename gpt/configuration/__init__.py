"""A run as typed, validated sections, from defaults, a YAML file and the command line."""
