"""The command line: one file a verb, each calls one service."""
