"""HTTP only: parse, call one service, encode."""
