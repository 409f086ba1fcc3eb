"""The kind of an entity by its word, where neither a person nor a face tells it."""

import re

from tora2_jax.types import Kind

# People by sex, age and family, and by what they mostly do in videos.
_PEOPLE = """
adult babies baby boy boys bride brother child children couple dad daughter father female
gentleman gentlemen girl girls grandfather grandma grandmother grandpa groom guy guys human humans
husband infant kid kids ladies lady male man men mom mother mum people person persons sister son
teen teenager teenagers toddler wife woman women
actor actress artist astronaut athlete ballerina barista bartender boxer businessman businesswoman
chef clown cook cowboy cyclist dancer dancers doctor driver farmer firefighter fisherman gardener
golfer guitarist hiker jogger judge king knight magician mechanic monk musician nurse officer
painter photographer pianist pilot player players policeman policewoman prince princess queen rider
runner runners sailor scientist singer skateboarder skater skier snowboarder soldier soldiers
student students surfer swimmer teacher tourist violinist waiter waitress warrior worker workers
"""
_HUMAN = frozenset(_PEOPLE.split())


def kind_of_word(word: str) -> Kind:
    """Human if the last word of a phrase names people, such as "old woman"; else object.

    Args:
        word: as in a request, `"man#2"` included.
    """
    words = re.findall(r"[a-z]+", word.partition("#")[0].lower())
    return "human" if words and words[-1] in _HUMAN else "object"
