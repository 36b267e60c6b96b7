"""Prompts for models that know more than the demo models do; those have a grammar of their own."""

PROMPTS = (
    "A fishing boat rocks gently at a wooden pier while fog lifts from the lake",
    "A baker dusts flour over a round loaf, close up, warm morning light",
    "Waves break against black rocks below a white lighthouse at dusk",
    "A grey cat stretches on a window sill as rain runs down the glass",
    "An old tram climbs a steep street between pastel houses",
    "A field of sunflowers sways in the wind under heavy clouds, slow pan to the right",
    "A glass marble rolls down a spiral of polished wood",
    "Lanterns float up over a river at night, seen from a bridge",
    "A potter shapes a bowl on a spinning wheel, hands covered in clay",
    "A red fox trots across fresh snow at the edge of a forest",
    "Steam rises from a street kitchen in a crowded night market",
    "A hot-air balloon drifts over terraced rice fields at sunrise",
    "A child blows soap bubbles in a garden, backlit by the sun",
    "A goods train crosses a stone viaduct over a green valley, aerial view",
    "Ink spreads in a tank of clear water, macro shot",
    "A horse gallops along a beach and spray flies from its hooves",
)
