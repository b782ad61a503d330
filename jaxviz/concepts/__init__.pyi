from jaxviz.concepts.dictionary import (
    Dictionary as Dictionary,
    decode as decode,
    encode as encode,
    load_dictionary as load_dictionary,
    save_dictionary as save_dictionary,
)
