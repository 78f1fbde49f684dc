"""`citylab restore`."""

from citylab.backing_up import restore
from citylab.cli import single

app = single(restore)
