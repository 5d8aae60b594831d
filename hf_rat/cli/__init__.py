"""The command line: one module per command, over one shared way to fine-tune."""
