"""The command ``lpips-lightning``; every subcommand imports its modules lazily."""
