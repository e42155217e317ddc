"""Attention backends that the plugin adds to SGLang's; loaded in the scheduler process only."""
