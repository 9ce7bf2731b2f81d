"""Apache Kafka's jars, fetched once by Maven and kept below `.cache/servers`, like the programs of `build.py`.

    PYTHONPATH=tests python -m servers.kafka_jars

fetches what is missing; `make test` does this first.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from servers.build import BuildError, folder

# The only place where they are pinned. What else they need, and in which version, say their own poms
KAFKA = "4.3.1"
LOG4J = "2.25.5"
ARTIFACTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA}",
    f"org.apache.kafka:kafka-tools:{KAFKA}",  # kafka-consumer-groups and the console consumer
    # Kafka's poms name none of these two, without which a broker starts, and says nothing when it fails
    f"org.apache.logging.log4j:log4j-core:{LOG4J}",
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J}",
)
JAVA = 17

NO_JAVA = (
    f"the tests run Apache Kafka, which needs Java {JAVA} or newer, and {{found}}: install it"
    f" (Debian: apt-get install openjdk-{JAVA}-jre-headless)"
)
NO_MAVEN = (
    "the tests fetch Apache Kafka with Maven, and there is no `mvn` on PATH: install Maven 3.6 or newer"
    " (Debian: apt-get install maven)"
)

_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>raybatch.tests</groupId>
  <artifactId>kafka</artifactId>
  <version>{version}</version>
  <packaging>pom</packaging>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""
_DEPENDENCY = (
    "    <dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
)


def installed() -> Path:
    """The folder of the jars, fetched first if this version never was; others who want it meanwhile wait.

    Raises `BuildError`. Some seconds the first time; 54 MB.
    """
    kept = folder() / f"kafka-{KAFKA}"
    if kept.exists():
        return kept
    folder().mkdir(parents=True, exist_ok=True)
    with open(folder() / "kafka.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _fetch(kept)
    return kept


def java(main: str, *args: str, memory: str, options: Sequence[str] = ()) -> list[str]:
    """The command that runs the class `main` of the jars in a small virtual machine."""
    small = [f"-Xmx{memory}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
    quiet = ["-Dorg.apache.logging.log4j.level=WARN", "-Djava.awt.headless=true"]
    return ["java", *small, *quiet, *options, "-cp", f"{installed()}/*", main, *args]


def _fetch(kept: Path) -> None:
    _check_java()
    maven = shutil.which("mvn")
    if maven is None:
        raise BuildError(NO_MAVEN)
    with tempfile.TemporaryDirectory(dir=kept.parent) as unfinished:
        dependencies = "\n".join(_DEPENDENCY.format(*artifact.split(":")) for artifact in ARTIFACTS)
        pom, jars = Path(unfinished) / "pom.xml", Path(unfinished) / "jars"
        pom.write_text(_POM.format(version=KAFKA, dependencies=dependencies))
        command = [maven, "--batch-mode", "--quiet", "--file", str(pom)]
        command += ["dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
        done = subprocess.run(command, cwd=unfinished, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")
        jars.rename(kept)


def _check_java() -> None:
    found = shutil.which("java")
    if found is None:
        raise BuildError(NO_JAVA.format(found="there is no `java` on PATH"))
    done = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', done.stderr)
    if version is None or int(version[1]) < JAVA:
        raise BuildError(
            NO_JAVA.format(found=f"{found} is {version[1] if version else 'of no known version'}")
        )


def main() -> int:
    started = time.monotonic()
    fresh = not (folder() / f"kafka-{KAFKA}").exists()
    if fresh:
        sys.stderr.write(f"  fetching Apache Kafka {KAFKA} for the tests\n")
    try:
        _check_java()
        installed()
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if fresh:
        sys.stderr.write(f"  fetched in {time.monotonic() - started:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
