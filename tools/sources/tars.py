"""Tar archives that may be damaged: what reading them may raise, and whether they were read to their true end."""

import lzma
import tarfile
import zlib

READ_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


def check_end(archive: tarfile.TarFile) -> None:
    """After the last member: raise one of READ_ERRORS where an archive is cut off or its checksum is wrong.

    ``tarfile`` stops quietly at both: at a header that is not whole, and before a gzip file's checksum.
    """
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("ends early, without the mark of a tar's end; copy or download it again")
    while archive.fileobj.read(2**20):
        pass
