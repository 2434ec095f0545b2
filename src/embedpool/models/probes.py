"""Texts short and long, plain and odd, in several languages: PROBES, on which a prepared model is compared with what it was
made from, and TYPICAL, on which is measured what quantising has to know. They have none in common: quality is measured on what
was not fitted."""

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

TYPICAL = (
    "Who wrote the first computer program?",
    "blue whale",
    "How long does it take to boil an egg at high altitude?",
    "The bridge was closed for repairs after inspectors found cracks in two of its supports.",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 10 ORDER BY 2 DESC;",
    "def retry(call, times=3):\n    for attempt in range(times):\n        try:\n            return call()\n"
    "        except OSError:\n            time.sleep(2 ** attempt)\n    raise TimeoutError('gave up')",
    "Der Zug nach Hamburg fährt heute wegen einer Störung von Gleis sieben ab.",
    "El museo abre de martes a domingo y cierra los lunes por la tarde.",
    "Les vaccins apprennent au système immunitaire à reconnaître un virus.",
    "Функция возвращает список, отсортированный по возрастанию.",
    "水は百度で沸騰し、零度で凍る。",
    "气候变化使极端天气事件更加频繁。",
    "Dear Ms Ortega, thank you for your order of 12 May. Two of the five items are out of stock; we will send them, at no extra"
    " cost, as soon as they arrive. Your invoice (no. 20391) is attached. Kind regards, the customer service team",
    "Returns a new array with the elements of both arguments. If axis is None, the arrays are flattened before they are joined;"
    " otherwise they must have the same shape, except in the dimension that corresponds to axis. Raises ValueError if the"
    " shapes do not match. See also: stack, which joins along a new axis, and split, which does the opposite.",
    "Volcanoes form where molten rock reaches the surface. Most lie along the edges of tectonic plates, where one plate sinks"
    " below another and melts, or where two move apart. Others, such as those of Hawaii, sit above a hot spot in the mantle and"
    " grow one after the other as the plate drifts over it. An eruption may be gentle, with lava that flows for kilometres, or"
    " explosive, when gas is trapped in thick magma; ash then rises far into the stratosphere and cools the climate for years.",
    "error: failed to connect to 10.0.3.17:5432 after 30 s: connection refused (is the server running there?)",
)
