"""Who could have written a file of the configuration, and who can read it."""

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path


def mistake(file: Path, status: os.stat_result) -> str | None:
    """Why an open file may not be trusted to be the operators', or None: whoever writes it decides where events go.

    Users who could: its owner and that of its folder. Groups: those that may write one of them. Each has to be root's,
    our own, or that of the volume. Where a link leads is what counts, since the files of containers' volumes are links.
    """
    real = os.path.realpath(file)
    folder = os.path.dirname(real)
    around = os.stat(folder)
    volume = _volume(real, status)
    users = {0, os.geteuid(), volume.st_uid}
    groups = {0, os.getegid(), *os.getgroups(), volume.st_gid}
    sticky = around.st_mode & stat.S_ISVTX  # nobody can take the place of another's file there
    name, name_of_folder = shlex.quote(str(file)), shlex.quote(folder)  # for a shell
    if status.st_mode & stat.S_IWOTH:
        return f'can be changed by everyone; run "chmod o-w {name}"'
    if around.st_mode & stat.S_IWOTH and not sticky:
        return f'is in a folder that everyone can change; run "chmod o-w {name_of_folder}"'
    if status.st_mode & stat.S_IWGRP and status.st_gid not in groups:
        return f'can be changed by a group (gid {status.st_gid}) that webhookd is not in; run "chmod g-w {name}"'
    if around.st_mode & stat.S_IWGRP and not sticky and around.st_gid not in groups:
        return f'is in a folder that a group (gid {around.st_gid}) can change; run "chmod g-w {name_of_folder}"'
    if status.st_uid not in users:
        return f'belongs to a user (uid {status.st_uid}) who is neither root nor webhookd; run "chown root {name}"'
    if around.st_uid not in users:
        return (
            f"is in a folder of a user (uid {around.st_uid}) who is neither root nor webhookd; "
            f'run "chown root {name_of_folder}"'
        )
    return None


def is_open(file: Path) -> bool:
    """True when every user of this machine can read the file. On a volume that is read-only nobody could mend it."""
    if os.statvfs(file).f_flag & os.ST_RDONLY or not os.stat(file).st_mode & stat.S_IROTH:
        return False
    return all(status.st_mode & stat.S_IXOTH for status in _folders(os.path.realpath(file)))


def _volume(real: str, status: os.stat_result) -> os.stat_result:
    """Where the file system begins that a file is on, which may be the file: root has mounted it there.

    All of a container's volume may belong to somebody who is nobody in the container. "/" and its like are root's.
    """
    top = status
    for around in _folders(real):
        if around.st_dev != status.st_dev:
            break
        top = around
    return top


def _folders(real: str) -> Iterator[os.stat_result]:
    """Those around a file, from its own to "/"."""
    for folder in Path(real).parents:
        yield os.stat(folder)
