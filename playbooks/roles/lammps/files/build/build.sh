#!/bin/sh
# build.sh SOURCE DIR OUT: builds the source package SOURCE, whose files are in DIR, and installs it under OUT.
# apt has held the files against the archive's signature.
set -eu
source=$1 dir=$2 out=$3
flags=-O2

mkdir -p /build && cd /build
src=/build/$source
dpkg-source --no-check -x "$dir/$source"_*.dsc "$src"
version=$(sed -n 's/^Version: //p' "$dir/$source"_*.dsc | head -n 1)

# Nearly all of the time goes into reading the same headers 446 times, so they are compiled once: 85 s instead of 250 s on two cores.
cat >precompile.cmake <<'EOF'
set(headers <cmath> <cstring> <map> <set> <string> <vector>)
foreach(header pointers atom comm domain error force memory modify neighbor update)
  list(APPEND headers "${CMAKE_CURRENT_SOURCE_DIR}/../src/${header}.h")
endforeach()
cmake_language(DEFER CALL target_precompile_headers lammps PRIVATE ${headers})
EOF
cmake -G Ninja -S "$src/cmake" -B b -D CMAKE_PROJECT_lammps_INCLUDE=/build/precompile.cmake \
	-D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_FLAGS_RELEASE="$flags" -D CMAKE_DISABLE_FIND_PACKAGE_Git=on \
	-D BUILD_MPI=on -D BUILD_OMP=off -D PKG_REAXFF=on -D WITH_JPEG=off -D WITH_PNG=off -D WITH_GZIP=off -D WITH_FFMPEG=off
# What is written before the bar is shown while this runs.
NINJA_STATUS='%f of %t files|' ninja -C b lmp >"$out.progress" 2>&1 || { tail -n 40 "$out.progress" >&2; exit 1; }

lammps=$out/opt/lammps hns=$out/opt/lammps/examples/reaxff/HNS
mkdir -p "$lammps/bin" "$hns" "$out/usr/local/bin"
install -s -m 755 b/lmp "$lammps/bin/lmp"
ln -s /opt/lammps/bin/lmp "$out/usr/local/bin/lmp"
cp "$src"/examples/reaxff/HNS/* "$hns"
# Older versions call the input in.reaxc.hns. Its README has the variable t set the number of steps, but the input says 100.
[ -e "$hns/in.reaxff.hns" ] || mv "$hns/in.reaxc.hns" "$hns/in.reaxff.hns"
sed -i 's/^run  *100$/run               $t/' "$hns/in.reaxff.hns"
grep -q '^variable t index' "$hns/in.reaxff.hns"
cat >"$lammps/VERSION" <<EOF
LAMMPS $(sed -n 's/.*LAMMPS_VERSION "\(.*\)"/\1/p' "$src/src/version.h")
source $source $version
flags $flags PKG_REAXFF BUILD_MPI Open MPI $(dpkg-query -W -f '${Version}' libopenmpi-dev)
compiler $(c++ --version | head -n 1)
EOF
