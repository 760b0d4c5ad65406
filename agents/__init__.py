"""Run small models: personas, tools and graphs on one loaded base."""
