"""The command ``lpips-lightning``: each subcommand imports what it needs when it is called."""
