"""What the commands do. The commands, and these, are the only places that know all parts of the house."""
