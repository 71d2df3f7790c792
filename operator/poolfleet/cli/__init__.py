"""`kubectl pgpool`: what the operator's arithmetic says, in a cluster or before there is one. It only reads."""
