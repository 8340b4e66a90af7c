"""``python -m lowbit``, as launchers of several processes want it."""

from lowbit.cli import main

if __name__ == "__main__":
    main()
