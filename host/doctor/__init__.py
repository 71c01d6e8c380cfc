"""What is wrong with a virtual machine that gives no memory back: its facts to causes, each with a remedy."""
