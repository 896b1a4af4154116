"""What an Intel GPU or NPU needs of a Linux system before OpenVINO sees it, and who packages it. Pure facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INTEL = "0x8086"
GPU_PAGE = "https://github.com/intel/compute-runtime/releases"
NPU_PAGE = "https://github.com/intel/linux-npu-driver/releases"
WINDOWS_PAGE = "https://www.intel.com/content/www/us/en/download-center/home.html"


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    Args:
        device: OpenVINO's name for it.
        title: what people call it.
        pci_classes: beginnings of the PCI class, as /sys writes it.
        nodes: pattern of the files through which programs use it, below the device in /sys.
        folder: where they lie in /dev.
        libraries: file name → what it is, of what has to be installed besides the kernel.
        install: family of distributions → the line that installs them; "" stands for any other.
        packages: names that Debian's family has for them.
        windows: its place in Windows' Device Manager.
    """

    device: str
    title: str
    pci_classes: tuple[str, ...]
    nodes: str
    folder: str
    libraries: Mapping[str, str]
    install: Mapping[str, str]
    packages: tuple[str, ...]
    windows: str


GPU = Kind(
    device="GPU",
    title="Intel GPU",
    pci_classes=("0x0300", "0x0302", "0x0380"),
    nodes="drm/renderD*",
    folder="/dev/dri",
    libraries={"libOpenCL.so.1": "the OpenCL loader"},
    install={
        "debian": "sudo apt install intel-opencl-icd ocl-icd-libopencl1",
        "fedora": "sudo dnf install intel-compute-runtime",
        "arch": "sudo pacman -S intel-compute-runtime ocl-icd",
        "suse": "sudo zypper install intel-opencl libOpenCL1",
        "nixos": "hardware.graphics.extraPackages = [ pkgs.intel-compute-runtime ];",
        "": f"install the packages of {GPU_PAGE}",
    },
    packages=("intel-opencl-icd", "ocl-icd-libopencl1", "libze1", "libze-intel-gpu1", "intel-level-zero-gpu"),
    windows="Display adapters",
)
NPU = Kind(
    device="NPU",
    title="Intel NPU",
    pci_classes=("0x1200",),
    nodes="accel/accel*",
    folder="/dev/accel",
    libraries={
        "libze_loader.so.1": "the Level Zero loader",
        "libze_intel_npu.so.1": "the NPU's driver",
        "libnpu_driver_compiler.so": "the NPU's compiler",
    },
    install={
        "debian": "sudo apt install libze1 && sudo dpkg -i intel-driver-compiler-npu_*.deb intel-fw-npu_*.deb "
                  f"intel-level-zero-npu_*.deb, fetched from {NPU_PAGE}",
        "arch": "sudo pacman -S intel-npu-driver level-zero-loader, and intel-npu-compiler from the AUR",
        "suse": "sudo zypper install linux-npu-driver level-zero",
        "nixos": "hardware.cpu.intel.npu.enable = true;",
        "": f"install the packages of {NPU_PAGE} and the Level Zero loader",
    },
    packages=("intel-level-zero-npu", "intel-driver-compiler-npu", "intel-fw-npu", "libze1", "level-zero"),
    windows="Neural processors",
)  # fmt: skip

LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64", "usr/lib", "usr/local/lib",
    "usr/local/lib64", "usr/local/lib/x86_64-linux-gnu", "run/opengl-driver/lib",
)  # fmt: skip


def install_line(kind: Kind, release: Mapping[str, str]) -> str:
    """The line for a distribution, from its /etc/os-release; its relatives' where it has none of its own."""
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    aliases = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "opensuse": "suse"}
    for name in names:
        family = "suse" if name.startswith("opensuse") else aliases.get(name, name)
        if family and family in kind.install:
            return kind.install[family]
    return kind.install[""]
