"""A clock that stands still until a test moves it."""


class VirtualClock:
    """A wall clock for keyspaces: called, it gives milliseconds since 1970."""

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        """Milliseconds since 1970."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass at once. What has expired then is hidden at once, and swept soon."""
        self.now += round(seconds * 1000)
