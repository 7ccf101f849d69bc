"""Files for mypy alone: importing them would register a method."""

collect_ignore = ["calls.py", "wrong_calls.py"]
