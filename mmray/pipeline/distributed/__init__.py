"""The parts that run on Ray; nothing else imports it."""
