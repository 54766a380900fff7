"""After the WebUI is started again, a pair that was compared before is planned from disk, and draws the same image."""

from __future__ import annotations

from .host import Host
from .jobs import klora


def list_kept(host: Host) -> dict[str, tuple[int, int]]:
    """Of each file of scores, which file it is, and when it was last used (ns)."""
    found = {path.name: path.stat() for path in (host.data / "cache" / "klora").glob("*.scores")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_new_start_plans_from_disk(host: Host):
    """A file that is taken is marked as used; one that is written anew is another file."""
    host.use(host.sd15.checkpoint)
    job = klora(host.sd15.uneven)
    image = host.image(job)
    before = list_kept(host)
    assert before
    host.stop()
    host.start(host.sd15.checkpoint)
    assert list_kept(host) == before, "a start touches none"
    assert (host.image(job) == image).all()
    after = list_kept(host)
    used = {name for name, (_, when) in after.items() if when > before[name][1]}
    assert len(used) == 1 and {name: inode for name, (inode, _) in after.items()} == {
        name: inode for name, (inode, _) in before.items()
    }
