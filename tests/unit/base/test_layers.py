#!/usr/bin/env python3
"""Include directions: a folder may include only what stands to its left of it.

daemon/base -> kernels -> cluster -> partition -> daemon; proto's generated headers only in the
rpc files and the control program of daemon; mpi.h and nccl.h only in cluster."""
import pathlib
import re
import sys

ORDER = ["daemon/base", "kernels", "cluster", "partition", "daemon"]
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.M)


def layer(path):
    for name in ("daemon/base", "kernels", "cluster", "partition", "daemon"):
        if path.startswith(name + "/"):
            return name
    return None


def violations(files):
    """files: path -> text. Yields one sentence for each include that is not allowed."""
    for path, text in files.items():
        own = layer(path)
        for target in INCLUDE.findall(text):
            other = layer(target)
            if own and other and ORDER.index(other) > ORDER.index(own):
                yield f"{path} includes {target}"
            if target in ("mpi.h", "nccl.h") and own != "cluster":
                yield f"{path} includes {target}, which only cluster/ may see"
            if re.search(r"\.pb-c\.h$|^grpc/", target):
                if not re.match(r"daemon/(rpc|ctl/)", path):
                    yield f"{path} includes {target}, which only rpc files may see"
            if re.match(r"cuda|cublas", target) and not path.startswith("kernels/cuda/"):
                if own != "cluster":
                    yield f"{path} includes {target}, which only kernels/cuda/ may see"


def main():
    # The check itself must be able to fail.
    planted = {"kernels/x.c": '#include "partition/partition.h"\n#include <mpi.h>\n',
               "partition/y.c": "#include <grpc/grpc.h>\n", "daemon/rpc_z.c": "#include <grpc/grpc.h>\n"}
    assert len(list(violations(planted))) == 3, list(violations(planted))

    root = pathlib.Path(sys.argv[1])
    files = {}
    for folder in ("daemon", "kernels", "cluster", "partition"):
        for path in (root / folder).rglob("*"):
            if path.suffix in (".c", ".h", ".cu", ".cuh"):
                files[path.relative_to(root).as_posix()] = path.read_text()
    found = list(violations(files))
    print("\n".join(found) if found else f"{len(files)} files keep the include directions")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
