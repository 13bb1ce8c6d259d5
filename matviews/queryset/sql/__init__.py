"""The statements that read a source and write its view."""
