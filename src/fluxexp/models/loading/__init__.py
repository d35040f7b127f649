"""From a config to a model on a device."""
