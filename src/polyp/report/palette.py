"""The colours of pages and charts."""

PALETTE = {
    "text": ("#1b1f24", "#e6e8eb"),
    "faint": ("#59636e", "#9aa4af"),
    "line": ("#d4d9df", "#3a424c"),
    "back": ("#ffffff", "#14171b"),
    "box": ("#f4f6f8", "#1d2127"),
    "warn": ("#9a5b00", "#f0b35a"),
    "mark": ("#0b6bcb", "#6db3ff"),
    "blue": ("#0072b2", "#56b4e9"),
    "orange": ("#b84a00", "#ff9a56"),
    "green": ("#007a58", "#35c79a"),
    "pink": ("#a3447f", "#e79ac8"),
    "ochre": ("#866200", "#f0c040"),
}
"""The colours of pages, light and dark. The last five are Okabe and Ito's (2008), which colour-blind people
can tell apart, made darker and lighter until text in them has a contrast of 4.5.
"""
