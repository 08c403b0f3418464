"""The command ``lpips-lightning``; every subcommand imports its modules lazily."""

from lpips_lightning.cli.commands import main as main
