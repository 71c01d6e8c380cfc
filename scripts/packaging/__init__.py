"""What is made of the checkout to be installed: manual pages, completion, a Debian package."""
