from pathlib import Path


def vault_transcript(home: Path) -> Path:
    return home / "vault" / "transcript.jsonl"
