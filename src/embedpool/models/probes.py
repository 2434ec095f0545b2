"""Texts on which a prepared model is compared with what it was made from: short and long, plain and odd, several languages."""

PROBES = (
    "What is Deep Learning?",
    "red",
    "How do I restart a service after its configuration has changed?",
    "The treaty was signed in 1648 and ended thirty years of war in central Europe.",
    "def area(radius: float) -> float:\n    return math.pi * radius ** 2",
    "Bei starkem Regen steigt der Fluss innerhalb weniger Stunden um mehrere Meter.",
    "La fotosíntesis convierte la luz del sol en energía química.",
    "機械学習のモデルは、文章を数のベクトルに変えることができる。",
    "Order 4711: 3 x bolt M8, 2 x washer, 1 x nut; deliver by Friday, 17:30.",
    "A cat sat on the windowsill and watched the snow fall on the empty street.",
    "The mitochondrion makes most of the cell's supply of adenosine triphosphate, which is used as a source of energy. It was"
    " once a free-living bacterium, and it still has a small genome of its own, which is passed on by the mother alone.",
    "Prices rose by 2.3 % in March, after 1.9 % in February. Economists had expected a smaller increase, because energy has"
    " become cheaper since the autumn; rents and services, however, went on rising. The central bank left its rate unchanged"
    " and said that it would decide from meeting to meeting. Shares fell slightly, and the currency gained against the dollar.",
)
