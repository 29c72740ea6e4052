from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedkit_indexes.corpus.language import UNKNOWN, detect_language, iso_code


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The library keeps old maps of the harbour, and nobody may borrow them."),
        ("de", "Die Bibliothek bewahrt alte Karten des Hafens auf, die niemand ausleihen darf."),
        ("fr", "La bibliothèque conserve de vieilles cartes du port."),
        ("es", "La biblioteca guarda mapas antiguos del puerto."),
        ("ru", "Библиотека хранит старые карты гавани."),
        ("uk", "Бібліотека зберігає старі карти гавані, і ніхто їх не позичає."),
        ("el", "Η βιβλιοθήκη φυλάσσει παλιούς χάρτες του λιμανιού."),
        ("ar", "تحتفظ المكتبة بخرائط قديمة للميناء."),
        ("fa", "این کتابخانه نقشه‌های قدیمی بندر را نگه می‌دارد."),
        ("hi", "पुस्तकालय में बंदरगाह के पुराने नक्शे रखे हैं।"),
        ("th", "ห้องสมุดเก็บแผนที่เก่าของท่าเรือ"),
        ("zh", "图书馆保存着港口的旧地图，任何人不得外借。"),
        ("ja", "図書館は港の古い地図を保管しています。"),
        ("ko", "도서관은 오래된 항구 지도를 보관합니다."),
        ("am", "ቤተ መጻሕፍቱ የወደቡን አሮጌ ካርታዎች ይጠብቃል።"),
        ("ka", "ბიბლიოთეკა ინახავს ნავსადგურის ძველ რუკებს."),
        ("sw", "Maktaba huhifadhi ramani za zamani za bandari, na hakuna anayeruhusiwa kuziazima."),
    ],
)
def test_languages(language: str, text: str) -> None:
    """A sentence's language is told, also where a long text goes on with it."""
    assert detect_language(text) == language
    assert detect_language(text * 100) == language


@pytest.mark.parametrize("text", ["", "  \n", "12345 67.8", "!!! ???", "—", "AI", "😀😀", "aB3+/xk9Q2lmZ0=="])
def test_unsure(text: str) -> None:
    """What holds no language is `und`."""
    assert detect_language(text) == UNKNOWN


def test_title_helps_a_short_text() -> None:
    """The title of a short text is looked at too."""
    assert detect_language("AI", "Die Geschichte der künstlichen Intelligenz") == "de"


def test_mixed_scripts() -> None:
    """Japanese among Chinese characters and Thai among Latin names stay what they are."""
    assert detect_language("東京都知事選挙の候補者一覧 2024") == "ja"
    assert detect_language("ติดตั้ง Python และ FAISS ด้วยคำสั่ง pip install") == "th"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("en", "en"),
        ("EN-us", "en"),
        ("zh-Hans", "zh"),
        ("eng_Latn", "en"),
        ("deu", "de"),
        ("ace_Arab", "ace"),
        ("cmn", "zh"),
        ("English", "English"),
    ],
)
def test_tags(said: str, code: str) -> None:
    """A language tag becomes ISO 639-1 where that has a code, else its first part, else stays."""
    assert iso_code(said) == code


def test_lazy() -> None:
    """Importing the readers loads neither the detector nor anything heavy."""
    heavy = "py3langid numpy pyarrow pypdf docx bs4 markdownify semantic_text_splitter tokenizers"
    code = (
        "import sys, embedkit_indexes.corpus.readers, embedkit_indexes.corpus.chunking;"
        f"print([m for m in {heavy.split()} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="a file size limit stands for a full disk")
def test_no_document_is_skipped_for_a_full_disk(tmp_path: Path) -> None:
    """Where the detector finds no room for its temporary files, reading ends with one sentence that says so."""
    (tmp_path / "a.txt").write_text("The library keeps old maps of the harbour.")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from embedkit.errors import InputError\n"
        "from embedkit_indexes import read_corpus\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: print(list(read_corpus([sys.argv[1]])))\n"
        "except InputError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("languages cannot be detected without room") and "TMPDIR" in done.stdout
