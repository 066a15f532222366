"""``python -m appliance.cli``: the ``cloister`` command."""

from appliance.cli import main

if __name__ == "__main__":
    main()
