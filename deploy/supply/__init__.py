"""What the images and the client carry: locked with hashes, listed with licences, checked for known vulnerabilities."""
