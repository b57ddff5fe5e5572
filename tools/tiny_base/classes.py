"""Class words: what broad kind of thing a drawing shows, from Unicode's subgroups and from icon names.

The twelve of IconBed are among some fifty, so that a question with such options means something
to the model; the drawings behind them are other artists'.
"""

from tools.tiny_base.sources import name_words

# Unicode's subgroups to class words; a subgroup that is not listed has none.
SUBGROUPS = {
    "animal-mammal": "mammal", "cat-face": "face", "monkey-face": "face", "animal-bird": "bird",
    "animal-amphibian": "reptile", "animal-reptile": "reptile", "animal-marine": "sea animal",
    "animal-bug": "bug", "plant-flower": "plant", "plant-other": "plant", "food-fruit": "produce",
    "food-vegetable": "produce", "food-prepared": "meal", "food-asian": "meal", "food-sweet": "meal",
    "drink": "drink", "dishware": "kitchenware", "place-building": "building", "place-religious": "building",
    "place-map": "map", "place-geographic": "landscape", "transport-ground": "vehicle",
    "transport-water": "ship", "transport-air": "aircraft", "clothing": "clothing", "tool": "tool",
    "hotel": "household", "time": "clock", "sky-weather": "weather", "event": "party", "award-medal": "award",
    "sport": "sport", "game": "game", "arts-crafts": "art", "sound": "sound", "music": "music",
    "musical-instrument": "musical instrument", "phone": "phone", "computer": "computer",
    "light-video": "camera", "book-paper": "book", "money": "money", "mail": "mail",
    "writing": "writing", "office": "office", "lock": "lock", "science": "science", "medical": "medicine",
    "household": "household", "transport-sign": "sign", "warning": "sign", "arrow": "arrow",
    "religion": "religion", "zodiac": "zodiac", "heart": "heart", "body-parts": "body part",
    "face-smiling": "face", "face-affection": "face", "face-tongue": "face", "face-hand": "face",
    "face-neutral-skeptical": "face", "face-sleepy": "face", "face-unwell": "face", "face-hat": "face",
    "face-glasses": "face", "face-concerned": "face", "face-negative": "face", "face-costume": "face",
    "hand-fingers-open": "hand", "hand-fingers-partial": "hand", "hand-single-finger": "hand",
    "hand-fingers-closed": "hand", "hands": "hand", "hand-prop": "hand", "person": "person",
    "person-gesture": "person", "person-role": "person", "person-fantasy": "fantasy creature",
    "person-activity": "person", "person-sport": "person", "person-resting": "person", "family": "person",
    "geometric": "shape", "math": "sign", "punctuation": "sign", "currency": "money",
}  # fmt: skip

# Concepts that a subgroup holds though they are no such thing.
_NO_CLASS = (
    "bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel", "police car light",
    "horizontal traffic light", "vertical traffic light", "stop sign", "construction", "paw prints",
    "feather", "nest with eggs", "empty nest", "spider web", "microbe", "gem stone", "crown", "ring",
    "lipstick", "glasses", "sunglasses", "goggles", "handbag", "purse", "clutch bag", "pouch",
    "shopping bags", "backpack", "folding hand fan", "bow and arrow", "pistol", "water pistol", "bomb",
    "shield", "boomerang", "dagger", "crossed swords", "white cane", "link", "chains", "balance scale",
    "manual wheelchair", "motorized wheelchair", "skateboard", "roller skate", "rock", "wood", "brick",
    "salt", "canned food", "statue of liberty", "prayer beads",
)  # fmt: skip

# Class words, and the words of icon names that tell of them.
_WORDS = """
bird: bird birds chick chicken dodo dove duck eagle flamingo goose owl parrot peacock penguin rooster swan
  hen cock hawk falcon crow raven sparrow pigeon toucan seagull pelican ostrich hummingbird vulture
  kiwibird stork heron duckling twitter canary puffin gull
bug: bug bugs insect ant beetle butterfly cockroach cricket honeybee bee ladybug ladybird mosquito
  scorpion snail spider worm moth wasp hornet tarantula slug larva centipede caterpillar dragonfly mantis
  locust tick earthworm grasshopper maggot grub flea aphid scarab termite bumblebee
building: building buildings bank castle church temple factory hospital hotel house houses hut mosque
  school stadium synagogue apartment skyscraper warehouse cottage cabin barn villa cathedral pagoda shrine
  museum university courthouse mansion farm igloo townhouse storefront shop tower home tent lighthouse
  windmill monastery chapel fort fortress palace stupa yurt bungalow clinic parthenon gazebo greenhouse
  silo
clothing: clothing clothes bikini briefs coat dress glove gloves jeans kimono necktie swimsuit shirt
  tshirt vest sari scarf shorts sock socks sandal sandals boot boots hat cap shoe shoes sneaker sneakers
  blouse jacket hoodie sweater trousers pants skirt gown robe slipper slippers bowtie tie bra underwear
  bathrobe apron mitten beanie suit heels flipflops heel turban cloak loincloth corset uniform trenchcoat
drink: drink drinks beer bottle tea teacup teapot milk cocktail sake wine glass mug cup coffee cafe
  espresso latte juice soda cola martini whiskey whisky vodka brandy champagne alcohol beverage tumbler
  lemonade milkshake smoothie goblet beers flask wineglass tankard pint boba
mammal: bear bison camel cat chipmunk cow deer dog elephant ewe fox giraffe gorilla horse kangaroo lion
  monkey mouse pig poodle rabbit raccoon rhinoceros rhino tiger wolf zebra puppy kitten bunny hare rat ox
  bull cattle buffalo sheep lamb ram goat pony donkey hog boar stag antelope moose reindeer panther
  leopard jaguar ape squirrel hedgehog beaver otter skunk badger sloth panda koala hippo hippopotamus
  llama alpaca hamster bat tapir weasel mammoth platypus lynx cougar
meal: meal bacon bagel baguette bento cake bread burrito cheese croissant cupcake doughnut donut fries
  hamburger burger hotdog pancake pancakes pizza pretzel rice sandwich spaghetti sushi taco waffle noodle
  noodles pasta ramen soup stew dessert muffin toast steak sausage ham drumstick dumpling kebab icecream
  popsicle cookie omelette curry pie salad breakfast lunch dinner popcorn meat egg eggs fondue tapas
  biryani macaron pudding porridge
plant: plant blossom bouquet cactus tree trees leaf clover herb hibiscus hyacinth lotus palm rose seedling
  shamrock sunflower tulip flower flowers grass fern bush ivy sprout bonsai pine oak bamboo bloom daisy
  lily orchid shrub forest vine wheat barley grain cannabis leaves daffodil bellflower thistle weed
  monstera
produce: avocado banana pepper blueberry blueberries broccoli carrot cherry cherries coconut cucumber corn
  eggplant garlic grape grapes kiwi lemon mango melon onion pea peas peach peanut peanuts pear pineapple
  potato apple strawberry tangerine tomato watermelon citrus orange lime berry raspberry plum olive
  pomegranate papaya chili radish turnip beet cabbage lettuce pumpkin bean beans almond aubergine fruit
  fruits vegetable vegetables mushroom mushrooms artichoke asparagus fig dragonfruit leek
sea animal: fish blowfish coral crab dolphin jellyfish lobster octopus oyster seal shark shrimp shell
  whale squid prawn salmon tuna bass crayfish clam goldfish clownfish catfish seahorse starfish walrus
  orca angler eel anglerfish nautilus ray stingray swordfish flatfish
tool: tool tools axe broom saw clamp gear hammer hook ladder magnet bolt paintbrush pickaxe plunger
  scissors screwdriver ruler toolbox wrench spanner drill pliers shovel spade rake brush hatchet nail
  screw anvil crowbar mop trowel chisel sickle scythe pitchfork hoe mallet chainsaw knife tweezers gears
  vise file jackhammer hacksaw
vehicle: vehicle ambulance lorry rickshaw automobile bicycle bus truck scooter train railcar locomotive
  minibus monorail motorcycle tractor tram trolleybus car cars taxi van bike motorbike jeep suv minivan
  moped caravan wagon limousine bulldozer excavator forklift trailer rv subway metro cab camper hatchback
  convertible pickup firetruck cybertruck tricycle carriage sled racecar
reptile: turtle snake lizard frog crocodile alligator gecko tortoise cobra chameleon python salamander
  toad
fantasy creature: dragon unicorn ghost robot alien wizard mermaid vampire zombie monster devil angel fairy
  elf goblin troll orc demon hydra griffin imp ogre werewolf centaur minotaur cyclops golem
person: man woman person people child baby girl boy user face nurse doctor worker farmer officer king
  queen student teacher pirate ninja samurai warrior monk priest chef
body part: hand eye eyes ear nose mouth tooth foot brain lungs heart kidney liver stomach bone skull
  finger lips leg arm muscle skeleton tongue intestine ribs
weather: sun moon rain snow wind storm tornado lightning rainbow fog snowflake umbrella hurricane sunrise
  sunset thunder cloud thunderstorm drizzle hail sunny cloudy
landscape: mountain mountains volcano island desert beach waterfall river lake cave cliff valley canyon
  hills
sport: football soccer basketball baseball tennis golf hockey volleyball rugby cricketball bowling boxing
  skateboard ski skis snowboard surfing dumbbell barbell karate badminton archery billiards weightlifting
game: dice puzzle joystick gamepad chess domino pawn rook controller tetris arcade checkers
music: music musical note melody cd vinyl playlist headphones
musical instrument: guitar piano violin drum trumpet saxophone flute harp accordion banjo tambourine lute
  maracas harmonica cello xylophone trombone
furniture: bed chair table sofa couch desk shelf bookshelf wardrobe stool bench dresser armchair cabinet
  cradle
household: lamp bulb candle door window bathtub shower toilet sink bucket soap sponge mirror fan heater
  fridge refrigerator oven microwave washer vacuum curtain basket toothbrush faucet
kitchenware: fork spoon plate bowl pan pot kettle blender chopsticks whisk spatula ladle cauldron dish jar
  amphora grill barbecue toaster
weapon: sword gun bomb shield dagger spear arrow bow cannon pistol rifle grenade missile crossbow mace
  halberd katana blade swords trident catapult revolver
ship: ship boat anchor sailboat ferry canoe kayak submarine yacht raft galleon sail lifebuoy boats trireme
aircraft: plane airplane helicopter rocket balloon parachute drone satellite jet ufo zeppelin biplane
  spaceship shuttle glider airport
money: money coin coins dollar euro wallet cash pound bitcoin yen rupee cheque banknote piggybank
book: book books notebook newspaper bookmark journal library dictionary scroll
writing: pen pencil crayon eraser quill marker highlighter fountainpen
office: paperclip folder clipboard stapler briefcase pushpin calendar printer stamp archive
computer: laptop computer keyboard server cpu chip printer desktop monitor microchip
phone: phone smartphone telephone mobile iphone cellphone
camera: camera film video movie projector webcam photo clapperboard photography
science: microscope telescope flask beaker atom dna molecule magnet petri chemistry pipette
medicine: pill pills syringe stethoscope bandage medicine thermometer vaccine ambulancecross crutch
  wheelchair medical tablets virus bacteria
lock: lock key padlock unlock keyhole keys
clock: clock watch hourglass stopwatch alarm timer sundial
jewelry: ring diamond necklace gem crown earring pearl tiara jewel
container: box barrel suitcase bag backpack crate chest package luggage purse handbag briefcase trunk
toy: toy teddy kite yoyo doll rattle lego slinky rubik
party: gift fireworks confetti firework present balloons party firecracker
award: trophy medal award ribbon prize podium
map: map globe compass signpost atlas
chart: chart graph histogram gauge
religion: cross menorah ankh bible quran prayer buddha
flag: flag pennant banner
"""
_LISTED = dict(line.split(": ") for line in _WORDS.replace("\n  ", " ").strip().splitlines())
_BY_WORD: dict[str, set[str]] = {}
for _name, _listed in _LISTED.items():
    for _word in _listed.split():
        _BY_WORD.setdefault(_word, set()).add(_name)

# Words that turn a name into something else: "bird house", "fish bowl" have two classes in any case.
_BREAKER_WORDS = """
food toy sign paw head skull track print prints off battery wash park parking key hanger rack washing machine
holder charger station stop seat tail road map care cleaner light wheel tire tyre mask hunting wing wings feet
foot leg legs bite claws claw horn horns mark logo brand emoji settings board ball theme doc insurance rental
search user users person man woman flying trap fly
"""
_BREAKERS = set(_BREAKER_WORDS.split())

CLASSES = sorted({*SUBGROUPS.values(), *_LISTED})
ICONBED = (
    "bird", "bug", "building", "clothing", "drink", "mammal", "meal", "plant", "produce", "sea animal",
    "tool", "vehicle",
)  # fmt: skip


def of_emoji(label: str, subgroup: str) -> str:
    """The class word of a Unicode concept, or ""."""
    return "" if label in _NO_CLASS else SUBGROUPS.get(subgroup, "")


def of_icon(name: str) -> str:
    """The class word of an icon by the words of its name, or "" where they tell none or several."""
    words = name_words(name)
    if len(words) > 4:
        return ""
    found = [_BY_WORD[word] for word in words if word in _BY_WORD]
    common = set.intersection(*found) if found else set()
    if len(common) != 1:
        return ""
    (only,) = common
    own = {word for word in words if only in _BY_WORD.get(word, ())}
    return "" if only in ICONBED and _BREAKERS & (set(words) - own) else only
