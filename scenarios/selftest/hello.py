"""Says rank, size, node and the sum of all ranks, as a rank of MPI by the library of argument 1: openmpi or mpich."""
import ctypes
import ctypes.util
import os
import sys

# Handles are the addresses of variables in Open MPI, and numbers, of its mpi.h, in MPICH.
name, library, world, integer, add = {
    "openmpi": ("Open MPI", "libmpi.so.40", "ompi_mpi_comm_world", "ompi_mpi_int", "ompi_mpi_op_sum"),
    "mpich": ("MPICH", "libmpich.so.12", 0x44000000, 0x4C000405, 0x58000003),
}[sys.argv[1]]
mpi = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)


def handle(what):
    """A handle as an argument."""
    return ctypes.c_int(what) if isinstance(what, int) else ctypes.byref(ctypes.c_char.in_dll(mpi, what))


def call(function, *args):
    """Calls a function of MPI, which must succeed."""
    if getattr(mpi, function)(*args) != 0:
        sys.exit(f"{function} failed")


rank, size, total, length = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
node = ctypes.create_string_buffer(1024)
call("MPI_Init", None, None)
call("MPI_Comm_rank", handle(world), ctypes.byref(rank))
call("MPI_Comm_size", handle(world), ctypes.byref(size))
call("MPI_Get_processor_name", node, ctypes.byref(length))
call("MPI_Allreduce", ctypes.byref(rank), ctypes.byref(total), 1, handle(integer), handle(add), handle(world))
print(f"{rank.value} {size.value} {node.value.decode()} {total.value}", flush=True)
call("MPI_Barrier", handle(world))
if name == "MPICH":
    os._exit(0)  # MPICH 4.0 over UCX, which Debian 12 has, may wait in MPI_Finalize for ever; all is said
call("MPI_Finalize")
