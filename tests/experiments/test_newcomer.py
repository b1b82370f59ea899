import subprocess

from experiments import newcomer

PAGE = """# Title

```bash
printf one
```

## Then

```text
not run
```

```python
print("two")
```
"""


def test_the_blocks_of_a_page_run_in_order_under_their_headings():
    steps = newcomer.blocks(PAGE)
    assert [heading for heading, _ in steps] == ["Start", "Then"]
    done = subprocess.run(
        ["bash", "-c", newcomer.script(steps)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line and not line.startswith("@@")] == ["one", "two"]
    assert [line.split()[1] for line in lines if line.startswith("@@")] == ["0", "1", "2"]


def test_the_shell_can_read_the_tutorial():
    script = newcomer.script(newcomer.blocks(newcomer.TUTORIAL.read_text()))
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
