"""What it is called when what is measured answers with an error."""

from nkv_core.errors import NkvError


class Refused(NkvError):
    """What is measured answered with an error."""

    code = "bench_refused"
    status = 500
