"""Everything that is tested; a package, because some wheel of a quantizer family installs one of the same name."""
