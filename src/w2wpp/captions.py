"""What the base is told about a photo: its person's name, or man/woman and smiling, or nothing."""

from dataclasses import dataclass

import torch

# Common first names of the photographed; other people are captioned as "person".
MEN = frozenset(
    """
    aaron abdel abdul abdullah adam adrian ahmed al alan albert alberto alejandro aleksander alex alexander alexandre alfonso alfredo
    ali allen alvaro andre andres andrew andy angel anthony antonio ari arnold arthur barry ben benjamin bernard bill billy bob bobby
    boris brad brandon brendan brett brian bruce bryan carl carlos charles charlie chip chris christian christopher chuck claudio clint
    colin craig curtis dale damon dan daniel daniele danny darrell daryl dave david dean dennis derek dick don donald doug douglas
    drew earl ed eddie edward eduardo edwin enrique eric erik ernie federico felipe felix fernando francis francisco frank franz fred
    gabriel garry gary gene george gerald gerard gerhard gerry glen glenn gordon greg gregorio gregory guillaume guillermo gustavo guy
    hal hamid hank hans harold harry hector henry herb howard hugh hugo ian iain ibrahim igor ismail ivan jack jacques jake james jan
    jason javier jay jean-claude jeff jeffrey jeremy jerry jesse jim jimmy joe joel john johnny jon jonathan jorge jose joseph josh
    joshua juan juergen julien julio justin keith ken kenneth kent kevin kirk kurt larry laurent lawrence lee leon leonard leonardo
    lionel lloyd luciano lucio luis luiz luke mahmoud malcolm manuel marc marcelo marco marcos marcus mario mark martin matt matthew
    maurice max michael michel mickey miguel mike mikhail mitchell mohamed mohammad mohammed morris nathan nelson nestor nick nicolas
    norman oliver omar oscar paddy pascal pat patrick paul pedro pete peter phil philip pierre prince rafael ralph ramon randy raul ray
    reggie ricardo richard rick ricky rob robbie robert roberto rod rodrigo rogelio roger roland roman ron ronald roy ruben rudolph
    russell ryan sam sammy scott sean sergei sergio shane shawn simon stan stanley stefano stephane stephen steve steven stuart ted
    terry thomas tim timothy todd tom tommy tony troy vicente victor vince vincent vladimir walter warren will william wolfgang yasser
    yuri
    """.split()
)
WOMEN = frozenset(
    """
    alexandra alicia alison allison amanda amber amelie amy ana andrea angela angelina anita ann anna anne annette ashley barbara bonnie
    brenda brooke bridget brigitte britney carla carol carolina caroline carolyn catherine cathy cecilia charlotte cheryl christina
    christine christy cindy claire claudia colleen connie courtney cristina cynthia debra debbie denise diana diane donna doris dorothy
    eileen elena elisabeth elizabeth ellen emily emma erin eva faye frances gina gloria grace halle hannah heather helen hilary hillary
    holly irina isabella jacqueline jane janet janice jeanne jen jennifer jenny jessica jill joan joanna jodie julia juliana julianne
    julie karen karin kate katharine katherine kathleen kathryn kathy katie kelly kim kristen kristin laura lauren laurie leslie lesley
    linda lisa lindsay liza lucy margaret maria marina martha mary megan melanie melissa meryl michelle monica monique nancy naomi
    natalia natalie natasha nathalie nicole olivia pamela patricia patsy paula penelope penny princess queen rachel rebecca renee rita
    robin rosa rosie ruth sally samantha sandra sarah serena sharon sheila sherry shirley sophia stacey stephanie sue susan suzanne
    tamara tanya tara tatiana teresa theresa tina uma vanessa venus veronica vicki victoria wendy winona yoko yolanda
    """.split()
)


@dataclass(frozen=True)
class Shares:
    """How often a photo is shown with which kind of caption; the rest, 1 - sum, is the empty caption for guidance."""

    name: float = 0.70  # "photo of aaron eckhart"
    someone: float = 0.08  # "photo of sks person": anyone, so that the word means a person not met before
    attributes: float = 0.07  # "photo of a smiling man"
    person: float = 0.07  # "photo of a person"


def full_name(person: str) -> str:
    """A folder's name as a caption writes it: Aaron_Eckhart -> Aaron Eckhart."""
    return person.replace("_", " ")


def gender(person: str) -> str:
    """`man`, `woman`, or `person` where the first name does not tell."""
    first = person.split("_")[0].lower()
    return "man" if first in MEN else "woman" if first in WOMEN else "person"


def caption(person: str, labels: dict[str, str], shares: Shares, draw: torch.Generator) -> str:
    """Draw a caption for one photo. labels: `emotion` "happiness" is called smiling, in half the captions it fits."""
    kind, smile = torch.rand(2, generator=draw).tolist()
    smiling = labels.get("emotion") == "happiness" and smile < 0.5
    if (kind := kind - shares.name) < 0:
        return f"photo of {full_name(person)}" + (" smiling" if smiling else "")
    if (kind := kind - shares.someone) < 0:
        return "photo of sks person" + (" smiling" if smiling else "")
    if (kind := kind - shares.attributes) < 0:
        return f"photo of a {'smiling ' if smiling else ''}{gender(person)}"
    if (kind := kind - shares.person) < 0:
        return "photo of a person"
    return ""
